"""Code of users: loaded by its name, and contained when it goes wrong."""
