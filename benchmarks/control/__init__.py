"""What does the control plane do a second, beside what a user would queue with?"""
