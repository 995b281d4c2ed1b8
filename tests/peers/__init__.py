"""Our back-ends and front-ends with those of others, as Debian packages them."""
