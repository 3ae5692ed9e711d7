"""Networks of texts: token ids (B, L), of which 0 is padding, to logits."""

from torch import nn


class TextClassifier(nn.Module):
    """The mean of the vectors of a text's words, padding left out, and one linear layer."""

    def __init__(self, words, width, num_classes):
        super().__init__()
        self.embedding = nn.EmbeddingBag(words, width, padding_idx=0)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.embedding(x))

    def axes(self, walk, x):
        return walk(self.fc, walk(self.embedding, x))


def text_classifier(num_classes, in_channels, image_size, width=64):
    """words-width-classes; any image_size (tokens of a text)."""
    return TextClassifier(in_channels, width, num_classes)
