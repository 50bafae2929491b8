"""`vlm demo`: the whole product on one machine, and the round trip that proves it.

processes.py      child processes: started, watched, and ended whatever happens
guardian.py       ends them when the demo itself is killed
label_studio.py   a Label Studio of its own, with its own data and a random password
stack.py          Label Studio, backend and worker, started together
project.py        the demo's labelling config, its scenes and their true answers
measure.py        what the running backend predicts, compared with the truth
round_trip.py     correct, learn, serve the better version: `vlm demo --check`
run.py            puts them together
"""
