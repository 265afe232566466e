"""How a job ends without an answer: raised by the dispatcher and the queues, told to clients over HTTP."""


class JobFailed(Exception):
    """A job that ended without an answer.

    `code` is a `protocol.errors.Code` or one of the dispatcher's own: `model_not_found`, `model_not_ready`,
    `model_in_use`, `queue_full`, `queue_timeout`, `slow_reader`, `shutting_down`, `worker_crashed`. `message` is for
    the API caller, except where the code is `engine_error` (then for the log); `param` names the request field at
    fault. `retryable` says whether sending the same request again may succeed, `retry_after_s` when, where known.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retryable = retryable
        self.retry_after_s = retry_after_s
