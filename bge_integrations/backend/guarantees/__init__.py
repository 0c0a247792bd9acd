"""Four guarantees, each kept in one module.

- `files`: a file is there as a whole or not at all.
- `forks`: a forked process needs no lock and no thread of its parent, and the fork interrupts no native code. The exit
  of Python does not interrupt native code either.
- `interrupts`: an interrupt leaves nothing half done, and nothing long runs in an event loop's thread.
- `signals`: an error raised by a signal handler reaches the code that it interrupted, and native code leaves the stack
  of handlers as it was.
"""
