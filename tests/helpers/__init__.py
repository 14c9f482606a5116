"""What test files share: models, trainers, runs of the script, and a small Hub."""
