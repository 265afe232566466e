// What all scripts here share: a client for the pool named by the environment, and one line of JSON as their outcome.
import OpenAI from 'openai'

export const model = process.env.POOL_MODEL

// Counts requests, so that a test can tell how often the client tried.
export const tally = { attempts: 0 }

export const client = (options = {}) =>
  new OpenAI({
    baseURL: process.env.POOL_BASE_URL,
    apiKey: 'sk-of-every-client-library-in-the-tests',
    maxRetries: 0,
    fetch: (url, init) => {
      tally.attempts += 1
      return fetch(url, init)
    },
    ...options,
  })

export const user = (content) => [{ role: 'user', content }]

export const report = (outcome) => console.log(JSON.stringify(outcome))

// What a caller can read off an exception of the client.
export const described = (error) => ({
  name: error.constructor.name,
  status: error.status ?? null,
  code: error.code ?? null,
  param: error.param ?? null,
  type: error.type ?? null,
  requestID: error.requestID ?? null,
  message: error.message,
})

export const failure = async (call) => {
  try {
    await call()
  } catch (error) {
    return described(error)
  }
  return null
}
