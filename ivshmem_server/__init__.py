"""The ivshmem server, its peers and their command lines."""
