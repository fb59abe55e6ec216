"""From records to text: one object a form, each with one method."""
