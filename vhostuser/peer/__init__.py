"""A program at the other end of the socket: started, watched from outside, and its death explained."""
