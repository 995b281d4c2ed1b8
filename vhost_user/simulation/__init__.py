"""What is simulated behind a device, and the control socket by which others change it."""
