"""How do 50,000 requests become one thing that is submitted, watched and read as a whole?"""
