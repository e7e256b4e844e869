"""What machine this is: probe, power, profile."""
