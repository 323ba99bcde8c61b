"""Other kernels, each booted in a virtual machine from this machine's own root."""
