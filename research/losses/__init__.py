"""Loss functions and class weights."""
