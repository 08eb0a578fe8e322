"""What can go wrong, by kind. Each message says what was wrong, where, and what to do."""


class FeatherFaceError(Exception):
    """Base of the errors raised on purpose; the command line prints them as one line."""


class ImageError(FeatherFaceError):
    """A picture that cannot be read or has impossible measures."""


class ImageKindError(ImageError):
    """A file that is no picture, or a picture of a kind that is not read."""


class ImageSizeError(ImageError):
    """A picture with more pixels than the limit."""


class WeightsError(FeatherFaceError):
    """A weight file that is missing, corrupt or made for another model."""


class ConfigError(FeatherFaceError):
    """A configuration with an unknown key or an impossible value."""


class DataError(FeatherFaceError):
    """A data set that is missing, empty or malformed."""


class MissingExtraError(FeatherFaceError):
    """An optional dependency that the job needs is not installed."""


class TrainingError(FeatherFaceError):
    """A run that cannot go on, for instance because its loss is no longer a number."""


class VideoError(FeatherFaceError):
    """A video or camera that cannot be read, or a video that cannot be written."""


class ExportError(FeatherFaceError):
    """A model that a converter could not turn into another format."""
