// A stream whose server breaks down in the middle: what does the iteration end with?
import { client, described, model, report, user } from './pool.mjs'

let seen = 0
try {
  const stream = await client().chat.completions.create({
    model,
    messages: user('fake: slow@0.02 die@9 tokens@99'),
    stream: true,
  })
  for await (const chunk of stream) seen += 1
  report({ seen, error: null })
} catch (error) {
  report({ seen, error: described(error) })
}
