"""What does a finished run say of new images, samples or captions?"""
