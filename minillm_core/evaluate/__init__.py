"""What a student is worth: the measurements of a run's report, each as a plain function of models and rows."""
