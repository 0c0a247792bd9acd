"""What holds whatever a process does: three promises, and the one place where each is kept.

- `forks`: in a forked process no lock is held, no thread is waited for, and no native code was in its work. Nor is any
  when Python ends.
- `interrupts`: an interrupt leaves nothing half done, and nothing long runs in an event loop's thread.
- `signals`: what a signal handler raises reaches the code that it interrupted.
"""
