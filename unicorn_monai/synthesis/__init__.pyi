from .generator import Generator as Generator
from .requests import Request as Request
from .requests import Requests as Requests
from .sheets import samples_of as samples_of
from .writer import SampleWriter as SampleWriter
from .writer import Synthesizer as Synthesizer
