"""Learning from corrections: RQ jobs that fine-tune a project's decoder and publish it when it is better."""
