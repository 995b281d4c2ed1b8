"""vhost-user back-ends in Python: devices for QEMU that run in a process of their own."""
