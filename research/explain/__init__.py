"""Why does a trained model say what it says of an image, and how far can the picture that answers be trusted?"""
