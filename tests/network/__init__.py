"""Networks that take more than this machine's kernel may have; run in virtual machines."""
