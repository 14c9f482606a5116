"""What is done to cropped views on the training device: pure functions of pixels and drawn parameters."""
