import { client, model, report, user } from './pool.mjs'

const asked = { model, messages: user('tell me a story about the sea'), temperature: 0, max_tokens: 48 }
const openai = client()

const whole = await openai.chat.completions.create(asked)

const pieces = []
const finish = []
let usage = null
const stream = await openai.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
})
for await (const chunk of stream) {
  if (chunk.usage) usage = chunk.usage
  for (const choice of chunk.choices) {
    pieces.push(choice.delta.content ?? '')
    if (choice.finish_reason) finish.push(choice.finish_reason)
  }
}

const helper = await openai.chat.completions.stream(asked).finalChatCompletion()
const three = await openai.chat.completions.create({ ...asked, temperature: 0.9, seed: 7, n: 3 })
const again = await openai.chat.completions.create({ ...asked, temperature: 0.9, seed: 7, n: 3 })
const logprobs = await openai.chat.completions.create({ ...asked, max_tokens: 4, logprobs: true, top_logprobs: 2 })
const text = await openai.completions.create({ model, prompt: ['the sea', 'the sky'], temperature: 0, max_tokens: 8 })

report({
  whole: whole.choices[0].message.content,
  usage: whole.usage,
  finish_reason: whole.choices[0].finish_reason,
  pieces,
  finish,
  streamed_usage: usage,
  helper: helper.choices[0].message.content,
  three: three.choices.map((choice) => choice.message.content),
  again: again.choices.map((choice) => choice.message.content),
  logprobs: logprobs.choices[0].logprobs.content,
  text: text.choices.map((choice) => choice.text),
})
