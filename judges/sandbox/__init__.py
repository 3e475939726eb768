"""Where programs that a model wrote are run: apart from everything, and from the tests that judge them.

`child.py` is the process that forks for each check, `confinement.py` what holds it, `program.py` the program's side,
`bench.py` the tests' side, `source.py` its look at their source, and `peer.py`, `plain.py` what passes between the two.
Standard library only: all of it is imported before the process is confined, and nothing of ours is there afterwards.
"""
