"""The embedded data set, "digit scenes": handwritten digits on cluttered backgrounds.

    source_digits   the handwritten digits, and which of them are for training
    backgrounds     what lies behind the digits
    digit_scenes    one scene: pixels and the masks that go with them
    writer          a data set on disk, in COCO format and as label maps
    contact_sheet   a picture of some scenes with their annotations
    loading         an image loader for any data set, which names corrupt files

Nothing is imported here: drawing scenes needs OpenCV and scikit-learn, training on them does not.
"""
