"""What is predicted where it is more than one answer: every turn of a conversation, and answers to choose from."""
