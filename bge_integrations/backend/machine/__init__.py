"""The machine: cores, memory, devices and the versions of libraries."""
