"""Small talk, and what users of the pool ask about the pool. What is held out is a way of asking."""

from training.draw import Draw
from training.sample import Sample, ask
from training.skills.facts import polite

_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hi", "Hello!", "Hi!", "Hey", "Good day", "Hello there", "Hi there!", "hello", "hi", "hey there"),
        "Hello! How can I help you?",
    ),
    (("Good morning", "Good morning!", "good morning"), "Good morning! How can I help you?"),
    (
        ("How are you?", "How are you today?", "how are you", "How do you do?", "Are you well?"),
        "I am fine, thank you. How can I help you?",
    ),
    (("Thank you", "Thanks", "Thank you!", "thanks a lot", "Thanks!", "Thank you very much."), "You are welcome!"),
    (("Goodbye", "Bye", "Bye!", "See you", "Good night", "goodbye", "See you later!"), "Goodbye! See you soon."),
    (
        (
            "Who are you?",
            "What are you?",
            "Introduce yourself.",
            "Which model are you?",
            "What is your name?",
            "what is your name?",
            "who are you",
            "Tell me about yourself.",
        ),
        "I am a tiny demo model. I was trained from scratch to show that this pool works.",
    ),
    (
        ("What can you do?", "What are you good at?", "Help", "help", "What can I ask you?", "How can you help me?"),
        "I can repeat and spell words, count, sort, add numbers, answer small facts, call tools, "
        "write JSON and tell stories.",
    ),
    (
        ("Are you ChatGPT?", "Are you a large model?", "How big are you?", "How many parameters do you have?"),
        "I am small: I have less than two million parameters.",
    ),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "A joke, please."),
        "Why did the bee stay in the pool? It was a worker.",
    ),
    (
        ("Do you like music?", "Do you sleep?", "Do you dream?", "Are you human?", "Are you alive?"),
        "I am only a small program, but thank you for asking.",
    ),
)
_POOL: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "What is this pool?",
            "What is the pool?",
            "What does this server do?",
            "What is this server?",
            "What is running here?",
        ),
        "The pool serves several MLX models behind one OpenAI-compatible gateway, each model in its own process.",
    ),
    (
        (
            "Which endpoints are there?",
            "What endpoints does the pool have?",
            "List the endpoints.",
            "Which endpoints does the server have?",
            "What are your endpoints?",
        ),
        "The main endpoints are /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models and /health.",
    ),
    (
        (
            "How do I chat?",
            "Which endpoint is for chat?",
            "What is the chat endpoint?",
            "Where do I send chat requests?",
        ),
        "Send a POST request with your messages to /v1/chat/completions.",
    ),
    (
        (
            "How do I get embeddings?",
            "Which endpoint gives embeddings?",
            "What is the embeddings endpoint?",
            "Where do I send texts to embed?",
        ),
        "Send a POST request with your input to /v1/embeddings.",
    ),
    (
        (
            "How do I list the models?",
            "Which endpoint lists the models?",
            "Where do I see the models?",
            "How can I see all models?",
        ),
        "Send a GET request to /v1/models.",
    ),
    (
        (
            "How do I check the health?",
            "Is the pool healthy?",
            "What is the health endpoint?",
            "How do I see if the server is up?",
        ),
        "Send a GET request to /health. It names the state of every model.",
    ),
    (
        (
            "Where are the metrics?",
            "How do I get metrics?",
            "Which endpoint has metrics?",
            "Are there metrics for Prometheus?",
        ),
        "Prometheus metrics are at /metrics.",
    ),
    (
        (
            "Where are the docs?",
            "Is there documentation?",
            "Where is the API documentation?",
            "Where is the OpenAPI page?",
        ),
        "Open /docs in your browser. The OpenAPI document is at /openapi.json.",
    ),
    (
        ("How do I see the queue?", "Where are the queue stats?", "Which endpoint shows the queue?"),
        "Send a GET request to /v1/queue/stats.",
    ),
    (
        ("How do I count tokens?", "Which endpoint counts tokens?", "How can I tokenize a text?"),
        "Send your text to /v1/tokenize.",
    ),
    (
        (
            "How do I add a model?",
            "How can I add another model?",
            "How do I serve one more model?",
            "How do I add my own model?",
            "What must I do to add a model?",
        ),
        "Add a line to the Procfile: name: python -m worker --model-path MODEL --model-type chat",
    ),
    (
        (
            "How do I scale?",
            "How do I scale the chat model?",
            "How do I run two chat workers?",
            "How can I scale a model?",
            "How do I start more workers?",
            "How do I scale chat to 2?",
        ),
        "Run honcho start -c chat=2 to start two chat workers.",
    ),
    (
        (
            "How do I start the pool?",
            "How do I start the server?",
            "How can I start everything?",
            "How do I launch the pool?",
        ),
        "Run scripts/serve, or honcho start if everything is installed.",
    ),
    (
        ("How do I serve a real model?", "How do I use a bigger model?", "How do I serve a model from the hub?"),
        "Run scripts/serve --chat MODEL with a hub id or a path.",
    ),
    (("How do I run the tests?", "How can I test the pool?", "Where are the tests?"), "Run scripts/test."),
    (
        ("What is a worker?", "What does a worker do?", "What is the worker?", "Explain workers."),
        "A worker is a process that owns one model, its memory and its batches.",
    ),
    (
        ("What is the gateway?", "What does the gateway do?", "Explain the gateway."),
        "The gateway takes HTTP requests and passes them to the workers. It knows no MLX.",
    ),
    (
        ("What happens if a worker crashes?", "What if a model crashes?", "What happens after a crash?"),
        "Its supervisor starts it again. The other models do not notice.",
    ),
    (
        ("How do the gateway and the workers talk?", "What is ZeroMQ for?", "What connects the processes?"),
        "The gateway and the workers talk over ZeroMQ.",
    ),
    (
        ("What is a Procfile?", "What is the Procfile for?", "Explain the Procfile."),
        "The Procfile names every process: one line for the gateway and one for each model.",
    ),
    (
        (
            "Which clients work?",
            "Can I use the OpenAI client?",
            "Does the openai library work?",
            "How do I connect a client?",
        ),
        "Yes. Use any OpenAI client and set its base URL to this server followed by /v1.",
    ),
    (
        ("Can I send images?", "Do you see pictures?", "Does the pool support images?", "How do I send an image?"),
        "Send images to a vision model as image_url parts of a message.",
    ),
    (
        ("What is continuous batching?", "How are requests batched?", "Do requests share a batch?"),
        "New requests join the running batch at the next step, so nobody waits for the others to end.",
    ),
    (
        ("What is MLX?", "Explain MLX.", "What does MLX mean?"),
        "MLX is an array framework for machine learning on Apple silicon.",
    ),
)


def sample(source: Draw) -> Sample:
    """Draw a greeting or the like, or a question about the pool."""
    if source.chance(0.35):
        asked, answer = source.pick(_TALK)
        question = source.pick(asked)
        if source.chance(0.5):
            question = source.pick(("Oh. {}", "So: {}", "{} :)", "Ok. {}", "Well, {}", "Now: {}")).format(question)
        return ask("talk", question, question, answer)
    asked, answer = source.pick(_POOL)
    question = polite(source, source.pick(asked))
    return ask("talk", question, question, answer)
