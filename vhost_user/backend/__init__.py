"""The back-end: connections of front-ends, their vrings, and what a device needs of them."""
