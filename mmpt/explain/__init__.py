"""Looking inside an answer: attention, attribution and interaction, three different things that are kept apart."""
