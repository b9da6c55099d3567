"""Tables of labelled photographs, in the many forms that people have them."""
