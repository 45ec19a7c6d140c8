"""A small Debian machine under QEMU, for what needs another kernel than the host's."""
