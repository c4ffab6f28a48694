"""Built-in data: street scenes drawn by a program."""
from typing import NamedTuple
import numpy as np
from apd.data.scene_layout import Dice, draw_layout
from apd.data.scene_street import begin, paint_street
from apd.data.scene_objects import paint_thing
from apd.data.scene_light import draw_look, develop
def paint(seed, index, height, width):
    layout = draw_layout(Dice(seed, 0, index, 0))
    view = begin(layout, 2*height, 2*width)
    paint_street(view, layout)
    for t in layout.things: paint_thing(view, t)
    return view
def draw(seed,index,height,width,s):
    view = paint(seed,index,height,width)
    look = draw_look(Dice(seed,0,index,1), s)
    return develop(view, look), view
