"""What a run leaves for others: its record, its card with pictures, its repository on the Hub."""
