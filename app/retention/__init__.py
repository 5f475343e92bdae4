"""What is deleted when: ended jobs and all that belongs to them, prompts and outputs, what else has had its time."""
