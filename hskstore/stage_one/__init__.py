"""Stage one: the teacher runs once over the data, and what is kept of it is sealed in stores."""
