"""Publish a run: a report page, a data set folder for the Hugging Face Hub, and its upload."""
