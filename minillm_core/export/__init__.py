"""What a run hands over: the student folder."""
