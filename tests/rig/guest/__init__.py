"""Guests that boot Linux: under QEMU, and as User Mode Linux."""
