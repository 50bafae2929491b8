"""Label Studio's side: the server, its protocol, project versions and the queue."""
