"""The built-in tabletop: a scene, its camera and a scripted expert, for the demo and for closed-loop evaluation.

tabletop.py holds what is on the table and how it moves, drawing.py and camera.py draw it, expert.py plans a pick and
place, recorder.py writes episodes in the robot's recording format. Everything is made from one seed; nothing is
downloaded.
"""
