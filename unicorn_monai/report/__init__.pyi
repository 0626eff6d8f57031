from .report import write_report as write_report
from .tables import summarise as summarise
