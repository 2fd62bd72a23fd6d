"""Making a model one's own: from questions and answers, or pairs of answers, to a recipe that
trains on them."""
