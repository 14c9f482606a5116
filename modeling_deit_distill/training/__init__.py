"""What surrounds a training step, a callback or helper a file: checkpoints, interruption, averages, schedules."""
