from .data.images import read_image as read_image
from .evaluation import metrics as metrics
from .evaluation.evaluate import Evaluation as Evaluation
from .evaluation.evaluate import evaluate as evaluate
from .inference.export import export as export
from .inference.export import load_exported as load_exported
from .inference.predict import apply as apply
from .inference.predict import predict as predict
from .inference.predict import predict_many as predict_many
from .inference.probabilities import probabilities as probabilities
from .models.fcn import FCN as FCN
from .models.vgg import VGG16 as VGG16
from .network import Network as Network
from .network import VGG16Weights as VGG16Weights
from .training.loop import train as train
from .visualize import colorize as colorize
from .visualize import colormap as colormap
from .visualize import legend as legend
from .visualize import overlay as overlay
from .visualize import save_labels as save_labels
from .weights.load import load as load
from .weights.load import load_vgg16 as load_vgg16
from .weights.load import save as save
from .weights.transplant import init as init

__version__: str
