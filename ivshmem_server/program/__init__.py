"""The command lines: ivshmem-server and ivshmem-client."""
