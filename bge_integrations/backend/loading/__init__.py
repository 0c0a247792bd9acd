"""Who holds which model, and how one is loaded and its engine started."""
