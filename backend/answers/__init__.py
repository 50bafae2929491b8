"""From one task's images and the controls of its labelling config to Label Studio's results."""
