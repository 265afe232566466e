import { client, failure, model, report, tally, user } from './pool.mjs'

const openai = client()
const chat = (fields) => failure(() => openai.chat.completions.create({ model, messages: user('hello'), ...fields }))

const outcome = {
  unknown_model: await chat({ model: 'no-such-model' }),
  temperature: await chat({ temperature: 3 }),
  unsupported: await chat({ service_tier: 'scale' }),
  context: await chat({ messages: user('hello '.repeat(20_000)) }),
  streamed: await chat({ temperature: 3, stream: true }),
}

tally.attempts = 0
await failure(() =>
  client({ maxRetries: 2 }).chat.completions.create({ model, messages: user('hello'), temperature: 3 }),
)
report({ ...outcome, attempts: tally.attempts })
