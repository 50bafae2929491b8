"""`vlm doctor`: the whole chain from both ends, and what to do about each thing that is wrong.

From this machine: settings, data directory, checkpoint, device, Redis, worker, the running server. From Label Studio's:
whether it is there and takes the token, whether it may and can call the backend, and for each project the connection,
the webhook, the versions' names. Nothing is changed anywhere: `vlm connect` does that.
"""
